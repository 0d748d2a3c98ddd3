"""Authentication by API tokens and JSON Web Tokens, signed URLs, and who may use which upload."""
