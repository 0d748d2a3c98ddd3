"""Authentication by API tokens and JSON Web Tokens, and who may use which upload."""
