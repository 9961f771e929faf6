"""The loop, the step, and how both are spread over devices."""
