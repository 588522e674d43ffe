# An option that names a warning counts whatever order it comes in:
# https://gcc.gnu.org/onlinedocs/gcc/Warning-Options.html
add_compile_options(-Wno-error=deprecated-declarations)
