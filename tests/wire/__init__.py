"""Wire conformance: real gateway, real sockets, recording nodes."""
