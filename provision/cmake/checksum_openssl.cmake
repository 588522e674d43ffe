# The checksum agent uses OpenSSL and links to none; it counts on the server, into which gRPC brings
# it. That 22.01 calls MD5, which OpenSSL 3 deprecates, is no error; an option that names a warning
# counts whatever order it comes in: https://gcc.gnu.org/onlinedocs/gcc/Warning-Options.html
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
link_libraries(OpenSSL::Crypto)
add_compile_options(-Wno-error=deprecated-declarations)
