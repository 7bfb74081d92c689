"""Encoder, decoder and recurrent networks (chapter 5.2): looked into, trained small, compared."""
