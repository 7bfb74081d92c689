"""The code behind the chapters: one package a chapter, and `core`, which all of them use."""
