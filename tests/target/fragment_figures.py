"""The figures of the PTX ISA that say which lane of a warp holds which element of a matrix, cell by cell.

Data only: nothing here is computed, and neither the compiler nor the CPU twin of the device header reads it, so that
the tables derived in either can be held against these. Sections, named in quotes, are those of the chapter "Warp Level
Matrix Multiply-Accumulate Instructions"; the cells follow each figure and the rule for row and column under it.

A line is a row of the matrix. `T5:{a2,a3}` are two columns of that row, elements a2 and a3 of lane 5; `T5:b1` is one
column. Elements are numbered as the ISA lists them, "low to high": of two 16-bit elements in one 32-bit register, the
lower number is the lower half.
"""

# "Matrix Fragments for mma.m16n8k16 with floating point type" -------------------------------------------------------

# Figure "fragment layout for matrix A with .f16 / .bf16 type": row m, column k.
A_M16N8K16 = """
row  0 | T0:{a0,a1}  T1:{a0,a1}  T2:{a0,a1}  T3:{a0,a1}  T0:{a4,a5}  T1:{a4,a5}  T2:{a4,a5}  T3:{a4,a5}
row  1 | T4:{a0,a1}  T5:{a0,a1}  T6:{a0,a1}  T7:{a0,a1}  T4:{a4,a5}  T5:{a4,a5}  T6:{a4,a5}  T7:{a4,a5}
row  2 | T8:{a0,a1}  T9:{a0,a1}  T10:{a0,a1} T11:{a0,a1} T8:{a4,a5}  T9:{a4,a5}  T10:{a4,a5} T11:{a4,a5}
row  3 | T12:{a0,a1} T13:{a0,a1} T14:{a0,a1} T15:{a0,a1} T12:{a4,a5} T13:{a4,a5} T14:{a4,a5} T15:{a4,a5}
row  4 | T16:{a0,a1} T17:{a0,a1} T18:{a0,a1} T19:{a0,a1} T16:{a4,a5} T17:{a4,a5} T18:{a4,a5} T19:{a4,a5}
row  5 | T20:{a0,a1} T21:{a0,a1} T22:{a0,a1} T23:{a0,a1} T20:{a4,a5} T21:{a4,a5} T22:{a4,a5} T23:{a4,a5}
row  6 | T24:{a0,a1} T25:{a0,a1} T26:{a0,a1} T27:{a0,a1} T24:{a4,a5} T25:{a4,a5} T26:{a4,a5} T27:{a4,a5}
row  7 | T28:{a0,a1} T29:{a0,a1} T30:{a0,a1} T31:{a0,a1} T28:{a4,a5} T29:{a4,a5} T30:{a4,a5} T31:{a4,a5}
row  8 | T0:{a2,a3}  T1:{a2,a3}  T2:{a2,a3}  T3:{a2,a3}  T0:{a6,a7}  T1:{a6,a7}  T2:{a6,a7}  T3:{a6,a7}
row  9 | T4:{a2,a3}  T5:{a2,a3}  T6:{a2,a3}  T7:{a2,a3}  T4:{a6,a7}  T5:{a6,a7}  T6:{a6,a7}  T7:{a6,a7}
row 10 | T8:{a2,a3}  T9:{a2,a3}  T10:{a2,a3} T11:{a2,a3} T8:{a6,a7}  T9:{a6,a7}  T10:{a6,a7} T11:{a6,a7}
row 11 | T12:{a2,a3} T13:{a2,a3} T14:{a2,a3} T15:{a2,a3} T12:{a6,a7} T13:{a6,a7} T14:{a6,a7} T15:{a6,a7}
row 12 | T16:{a2,a3} T17:{a2,a3} T18:{a2,a3} T19:{a2,a3} T16:{a6,a7} T17:{a6,a7} T18:{a6,a7} T19:{a6,a7}
row 13 | T20:{a2,a3} T21:{a2,a3} T22:{a2,a3} T23:{a2,a3} T20:{a6,a7} T21:{a6,a7} T22:{a6,a7} T23:{a6,a7}
row 14 | T24:{a2,a3} T25:{a2,a3} T26:{a2,a3} T27:{a2,a3} T24:{a6,a7} T25:{a6,a7} T26:{a6,a7} T27:{a6,a7}
row 15 | T28:{a2,a3} T29:{a2,a3} T30:{a2,a3} T31:{a2,a3} T28:{a6,a7} T29:{a6,a7} T30:{a6,a7} T31:{a6,a7}
"""

# Figure "fragment layout for matrix B with .f16 / .bf16 type": row k, column n.
B_M16N8K16 = """
row  0 | T0:b0  T4:b0  T8:b0  T12:b0 T16:b0 T20:b0 T24:b0 T28:b0
row  1 | T0:b1  T4:b1  T8:b1  T12:b1 T16:b1 T20:b1 T24:b1 T28:b1
row  2 | T1:b0  T5:b0  T9:b0  T13:b0 T17:b0 T21:b0 T25:b0 T29:b0
row  3 | T1:b1  T5:b1  T9:b1  T13:b1 T17:b1 T21:b1 T25:b1 T29:b1
row  4 | T2:b0  T6:b0  T10:b0 T14:b0 T18:b0 T22:b0 T26:b0 T30:b0
row  5 | T2:b1  T6:b1  T10:b1 T14:b1 T18:b1 T22:b1 T26:b1 T30:b1
row  6 | T3:b0  T7:b0  T11:b0 T15:b0 T19:b0 T23:b0 T27:b0 T31:b0
row  7 | T3:b1  T7:b1  T11:b1 T15:b1 T19:b1 T23:b1 T27:b1 T31:b1
row  8 | T0:b2  T4:b2  T8:b2  T12:b2 T16:b2 T20:b2 T24:b2 T28:b2
row  9 | T0:b3  T4:b3  T8:b3  T12:b3 T16:b3 T20:b3 T24:b3 T28:b3
row 10 | T1:b2  T5:b2  T9:b2  T13:b2 T17:b2 T21:b2 T25:b2 T29:b2
row 11 | T1:b3  T5:b3  T9:b3  T13:b3 T17:b3 T21:b3 T25:b3 T29:b3
row 12 | T2:b2  T6:b2  T10:b2 T14:b2 T18:b2 T22:b2 T26:b2 T30:b2
row 13 | T2:b3  T6:b3  T10:b3 T14:b3 T18:b3 T22:b3 T26:b3 T30:b3
row 14 | T3:b2  T7:b2  T11:b2 T15:b2 T19:b2 T23:b2 T27:b2 T31:b2
row 15 | T3:b3  T7:b3  T11:b3 T15:b3 T19:b3 T23:b3 T27:b3 T31:b3
"""

# Figure "fragment layout for accumulator matrix C/D": row m, column n; one .f32 register an element.
C_M16N8K16 = """
row  0 | T0:{c0,c1}  T1:{c0,c1}  T2:{c0,c1}  T3:{c0,c1}
row  1 | T4:{c0,c1}  T5:{c0,c1}  T6:{c0,c1}  T7:{c0,c1}
row  2 | T8:{c0,c1}  T9:{c0,c1}  T10:{c0,c1} T11:{c0,c1}
row  3 | T12:{c0,c1} T13:{c0,c1} T14:{c0,c1} T15:{c0,c1}
row  4 | T16:{c0,c1} T17:{c0,c1} T18:{c0,c1} T19:{c0,c1}
row  5 | T20:{c0,c1} T21:{c0,c1} T22:{c0,c1} T23:{c0,c1}
row  6 | T24:{c0,c1} T25:{c0,c1} T26:{c0,c1} T27:{c0,c1}
row  7 | T28:{c0,c1} T29:{c0,c1} T30:{c0,c1} T31:{c0,c1}
row  8 | T0:{c2,c3}  T1:{c2,c3}  T2:{c2,c3}  T3:{c2,c3}
row  9 | T4:{c2,c3}  T5:{c2,c3}  T6:{c2,c3}  T7:{c2,c3}
row 10 | T8:{c2,c3}  T9:{c2,c3}  T10:{c2,c3} T11:{c2,c3}
row 11 | T12:{c2,c3} T13:{c2,c3} T14:{c2,c3} T15:{c2,c3}
row 12 | T16:{c2,c3} T17:{c2,c3} T18:{c2,c3} T19:{c2,c3}
row 13 | T20:{c2,c3} T21:{c2,c3} T22:{c2,c3} T23:{c2,c3}
row 14 | T24:{c2,c3} T25:{c2,c3} T26:{c2,c3} T27:{c2,c3}
row 15 | T28:{c2,c3} T29:{c2,c3} T30:{c2,c3} T31:{c2,c3}
"""

# "Matrix Fragments for mma.m16n8k8" ---------------------------------------------------------------------------------

# Figure "fragment layout for matrix A with .tf32 type": row m, column k; one 32-bit register an element.
A_M16N8K8_TF32 = """
row  0 | T0:a0  T1:a0  T2:a0  T3:a0  T0:a2  T1:a2  T2:a2  T3:a2
row  1 | T4:a0  T5:a0  T6:a0  T7:a0  T4:a2  T5:a2  T6:a2  T7:a2
row  2 | T8:a0  T9:a0  T10:a0 T11:a0 T8:a2  T9:a2  T10:a2 T11:a2
row  3 | T12:a0 T13:a0 T14:a0 T15:a0 T12:a2 T13:a2 T14:a2 T15:a2
row  4 | T16:a0 T17:a0 T18:a0 T19:a0 T16:a2 T17:a2 T18:a2 T19:a2
row  5 | T20:a0 T21:a0 T22:a0 T23:a0 T20:a2 T21:a2 T22:a2 T23:a2
row  6 | T24:a0 T25:a0 T26:a0 T27:a0 T24:a2 T25:a2 T26:a2 T27:a2
row  7 | T28:a0 T29:a0 T30:a0 T31:a0 T28:a2 T29:a2 T30:a2 T31:a2
row  8 | T0:a1  T1:a1  T2:a1  T3:a1  T0:a3  T1:a3  T2:a3  T3:a3
row  9 | T4:a1  T5:a1  T6:a1  T7:a1  T4:a3  T5:a3  T6:a3  T7:a3
row 10 | T8:a1  T9:a1  T10:a1 T11:a1 T8:a3  T9:a3  T10:a3 T11:a3
row 11 | T12:a1 T13:a1 T14:a1 T15:a1 T12:a3 T13:a3 T14:a3 T15:a3
row 12 | T16:a1 T17:a1 T18:a1 T19:a1 T16:a3 T17:a3 T18:a3 T19:a3
row 13 | T20:a1 T21:a1 T22:a1 T23:a1 T20:a3 T21:a3 T22:a3 T23:a3
row 14 | T24:a1 T25:a1 T26:a1 T27:a1 T24:a3 T25:a3 T26:a3 T27:a3
row 15 | T28:a1 T29:a1 T30:a1 T31:a1 T28:a3 T29:a3 T30:a3 T31:a3
"""

# Figure "fragment layout for matrix B with .tf32 type": row k, column n.
B_M16N8K8_TF32 = """
row  0 | T0:b0  T4:b0  T8:b0  T12:b0 T16:b0 T20:b0 T24:b0 T28:b0
row  1 | T1:b0  T5:b0  T9:b0  T13:b0 T17:b0 T21:b0 T25:b0 T29:b0
row  2 | T2:b0  T6:b0  T10:b0 T14:b0 T18:b0 T22:b0 T26:b0 T30:b0
row  3 | T3:b0  T7:b0  T11:b0 T15:b0 T19:b0 T23:b0 T27:b0 T31:b0
row  4 | T0:b1  T4:b1  T8:b1  T12:b1 T16:b1 T20:b1 T24:b1 T28:b1
row  5 | T1:b1  T5:b1  T9:b1  T13:b1 T17:b1 T21:b1 T25:b1 T29:b1
row  6 | T2:b1  T6:b1  T10:b1 T14:b1 T18:b1 T22:b1 T26:b1 T30:b1
row  7 | T3:b1  T7:b1  T11:b1 T15:b1 T19:b1 T23:b1 T27:b1 T31:b1
"""

# Figure "fragment layout for accumulator matrix C/D with .f16x2 / .f32 type": row m, column n.
C_M16N8K8 = """
row  0 | T0:{c0,c1}  T1:{c0,c1}  T2:{c0,c1}  T3:{c0,c1}
row  1 | T4:{c0,c1}  T5:{c0,c1}  T6:{c0,c1}  T7:{c0,c1}
row  2 | T8:{c0,c1}  T9:{c0,c1}  T10:{c0,c1} T11:{c0,c1}
row  3 | T12:{c0,c1} T13:{c0,c1} T14:{c0,c1} T15:{c0,c1}
row  4 | T16:{c0,c1} T17:{c0,c1} T18:{c0,c1} T19:{c0,c1}
row  5 | T20:{c0,c1} T21:{c0,c1} T22:{c0,c1} T23:{c0,c1}
row  6 | T24:{c0,c1} T25:{c0,c1} T26:{c0,c1} T27:{c0,c1}
row  7 | T28:{c0,c1} T29:{c0,c1} T30:{c0,c1} T31:{c0,c1}
row  8 | T0:{c2,c3}  T1:{c2,c3}  T2:{c2,c3}  T3:{c2,c3}
row  9 | T4:{c2,c3}  T5:{c2,c3}  T6:{c2,c3}  T7:{c2,c3}
row 10 | T8:{c2,c3}  T9:{c2,c3}  T10:{c2,c3} T11:{c2,c3}
row 11 | T12:{c2,c3} T13:{c2,c3} T14:{c2,c3} T15:{c2,c3}
row 12 | T16:{c2,c3} T17:{c2,c3} T18:{c2,c3} T19:{c2,c3}
row 13 | T20:{c2,c3} T21:{c2,c3} T22:{c2,c3} T23:{c2,c3}
row 14 | T24:{c2,c3} T25:{c2,c3} T26:{c2,c3} T27:{c2,c3}
row 15 | T28:{c2,c3} T29:{c2,c3} T30:{c2,c3} T31:{c2,c3}
"""

# "Warp-level matrix load instruction: ldmatrix" ---------------------------------------------------------------------

# Figure "ldmatrix fragment layout for one 8x8 Matrix with 16-bit elements": a row of the matrix is 16 bytes of shared
# memory; `lo` and `hi` are the halves of the lane's 32-bit register for this matrix.
LDMATRIX_M8N8 = """
row  0 | T0:{lo,hi}  T1:{lo,hi}  T2:{lo,hi}  T3:{lo,hi}
row  1 | T4:{lo,hi}  T5:{lo,hi}  T6:{lo,hi}  T7:{lo,hi}
row  2 | T8:{lo,hi}  T9:{lo,hi}  T10:{lo,hi} T11:{lo,hi}
row  3 | T12:{lo,hi} T13:{lo,hi} T14:{lo,hi} T15:{lo,hi}
row  4 | T16:{lo,hi} T17:{lo,hi} T18:{lo,hi} T19:{lo,hi}
row  5 | T20:{lo,hi} T21:{lo,hi} T22:{lo,hi} T23:{lo,hi}
row  6 | T24:{lo,hi} T25:{lo,hi} T26:{lo,hi} T27:{lo,hi}
row  7 | T28:{lo,hi} T29:{lo,hi} T30:{lo,hi} T31:{lo,hi}
"""

# The same for .trans, "the matrix is loaded in column-major format": the figure reflected in its diagonal. Row and
# column are still those of shared memory.
LDMATRIX_M8N8_TRANS = """
row  0 | T0:lo  T4:lo  T8:lo  T12:lo T16:lo T20:lo T24:lo T28:lo
row  1 | T0:hi  T4:hi  T8:hi  T12:hi T16:hi T20:hi T24:hi T28:hi
row  2 | T1:lo  T5:lo  T9:lo  T13:lo T17:lo T21:lo T25:lo T29:lo
row  3 | T1:hi  T5:hi  T9:hi  T13:hi T17:hi T21:hi T25:hi T29:hi
row  4 | T2:lo  T6:lo  T10:lo T14:lo T18:lo T22:lo T26:lo T30:lo
row  5 | T2:hi  T6:hi  T10:hi T14:hi T18:hi T22:hi T26:hi T30:hi
row  6 | T3:lo  T7:lo  T11:lo T15:lo T19:lo T23:lo T27:lo T31:lo
row  7 | T3:hi  T7:hi  T11:hi T15:hi T19:hi T23:hi T27:hi T31:hi
"""

# The table of .num: the lanes that give the addresses of rows 0 to 7 of each matrix, and the register of the
# destination that receives the matrix ("the elements of the second matrix are loaded in the next destination register
# in each thread"). The addresses of lanes not listed are not used.
LDMATRIX_X1_ADDRESSES = """
r0 | T0  T1  T2  T3  T4  T5  T6  T7
"""

LDMATRIX_X2_ADDRESSES = """
r0 | T0  T1  T2  T3  T4  T5  T6  T7
r1 | T8  T9  T10 T11 T12 T13 T14 T15
"""

LDMATRIX_X4_ADDRESSES = """
r0 | T0  T1  T2  T3  T4  T5  T6  T7
r1 | T8  T9  T10 T11 T12 T13 T14 T15
r2 | T16 T17 T18 T19 T20 T21 T22 T23
r3 | T24 T25 T26 T27 T28 T29 T30 T31
"""
