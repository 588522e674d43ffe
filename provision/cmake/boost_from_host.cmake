# Triton's Python backend downloads a Boost of which it reads headers alone. Here it is given those
# that Slipway found on the host instead. ExternalProject guards itself against being included twice,
# so this definition stays: https://cmake.org/cmake/help/latest/command/include_guard.html
include(ExternalProject)
function(ExternalProject_Add name)
  if(NOT name STREQUAL "boostorg")
    message(FATAL_ERROR "Slipway expected no external project here but boostorg, and met ${name}")
  endif()
  add_custom_target(boostorg)
  file(CREATE_LINK "${SLIPWAY_BOOST}/boost" "${CMAKE_BINARY_DIR}/boost" SYMBOLIC)
endfunction()
