"""What a GPU does in one kernel that takes many operations of torch."""
