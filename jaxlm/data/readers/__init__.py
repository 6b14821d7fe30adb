"""Read the formats in which people keep text, as streams in bounded memory."""
