"""Networks put together again from the names, order and shapes of their weights, and from labelled images."""
