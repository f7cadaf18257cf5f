"""What the wire and interop tests share: a running gateway, recording nodes, a raw client."""
