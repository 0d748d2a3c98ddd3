"""The administration API: uploads are listed, looked at and ended over HTTP by operators."""
