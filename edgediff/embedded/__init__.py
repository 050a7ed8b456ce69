"""The embedded model `glyph`, its judge, the list of its captions, and the programs that train them."""
