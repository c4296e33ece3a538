"""Function: split an aligned weight into a structured function and a residual."""
