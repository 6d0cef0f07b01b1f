"""The whole of Concilia as processes on one machine: the same entry points as the images, only addresses differ."""
