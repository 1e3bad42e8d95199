"""Operations recorded once and done again without Python, on a CPU and on a GPU."""
