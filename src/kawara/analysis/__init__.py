"""Numbers about models, never pictures: what they cost, and how an image is represented from layer to layer."""
