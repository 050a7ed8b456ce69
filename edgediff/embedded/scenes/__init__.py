"""The embedded model `scenes`: two tinted glyphs on a background, its captions, its two judges, and its training."""
