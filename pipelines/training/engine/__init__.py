"""What all ranks of a run compute together: DeepSpeed, the average of weights, what they tell each other."""
