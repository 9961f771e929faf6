"""What is learned: each task is a loss, predictions and a batch spec; pure, no files, no devices."""
