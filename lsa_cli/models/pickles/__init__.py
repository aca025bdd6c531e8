"""What a pickle says, read as symbols: no import and no call of it is made."""
