"""Numbers about models, never pictures: what they cost, and later what they look at."""
