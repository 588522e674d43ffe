# <limits> came in by other headers until gcc 11: https://gcc.gnu.org/gcc-11/porting_to.html
add_compile_options("SHELL:-include limits")
