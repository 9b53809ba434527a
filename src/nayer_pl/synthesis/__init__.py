"""What makes images: generators, their inputs, augmentation, and the rounds that train them."""
