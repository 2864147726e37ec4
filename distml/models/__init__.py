"""Networks: builders by name, pretrained weights, and transformations of built networks (driver, worker)."""
