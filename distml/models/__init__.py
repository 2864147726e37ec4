"""Networks: builders by name, pretrained weights, and changes of built networks (driver, worker)."""
