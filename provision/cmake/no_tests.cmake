# Triton's server, common and core have no option to leave their tests out; each project that takes
# common in builds them, and googletest for them, anew. A command that is defined again is still there under
# its name with an underscore before it, once.
if(NOT COMMAND _add_subdirectory)
  macro(add_subdirectory folder)
    if(NOT "${folder}" STREQUAL "test")
      _add_subdirectory("${folder}" ${ARGN})
    endif()
  endmacro()
endif()
