"""bridgelog: who asked which AI model for what, with which tools, at what token cost."""
