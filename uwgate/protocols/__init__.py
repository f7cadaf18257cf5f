"""Wire formats, sans-I/O: bytes in, values out. No socket, no clock, no logging, no settings."""
