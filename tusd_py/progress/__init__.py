"""Live progress of uploads: what listeners are told, and when."""
