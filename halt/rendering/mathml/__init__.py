"""TeX formulas as MathML."""
