"""Pickles read as symbols: nothing that a pickle names is imported or called."""
