# glibc 2.36 has arc4random, and no arc4random_addrandom, which needs none: the kernel seeds it.
# libevent 2.1.12 leaves the call out in the same way: https://github.com/libevent/libevent/pull/1394
add_compile_options("-Darc4random_addrandom(bytes,count)=((void)(bytes))")
