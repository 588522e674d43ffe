# The server of 22.01 has warnings made errors by CMAKE_CXX_FLAGS, which directory options come after,
# and takes size_t for granted, which other headers brought until gcc 11.
foreach(warning IN ITEMS maybe-uninitialized range-loop-construct use-after-free)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-error=${warning}>)
endforeach()
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include cstddef>")
