"""What a robot may send: read from the bundle, offered at the handshake, checked in a request."""
