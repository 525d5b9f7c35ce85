"""What holds the tuned model to the pretrained one."""
