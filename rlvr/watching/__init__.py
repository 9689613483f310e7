"""What is looked at while a run goes on: signs of life, stalls, numbers that are not finite, and a log per process."""
