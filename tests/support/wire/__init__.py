"""The tus client of the tests: bytes on a connection, and requests that are made of them."""
