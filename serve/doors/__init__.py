"""One file per peer protocol; each is a thin translation onto `gwp.protocol.messages`."""
