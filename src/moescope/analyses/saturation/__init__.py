"""Router saturation: agreement of training checkpoints' routing with the final model's."""
