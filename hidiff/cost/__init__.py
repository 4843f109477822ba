"""What a computation costs: multiply-accumulates, time, memory."""
