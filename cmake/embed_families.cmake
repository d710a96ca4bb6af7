# Writes family_builtin.cc, which holds the texts of millrace/model/families/*.json, and adds it to `target`.
# Runs when CMake configures; a changed or new family configures again.
function(millrace_embed_families target)
  file(GLOB families CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/millrace/model/families/*.json)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${families})
  set(entries "")
  foreach(family IN LISTS families)
    get_filename_component(name ${family} NAME)
    file(READ ${family} text)
    string(APPEND entries "    {\"${name}\", R\"family(${text})family\"},\n")
  endforeach()
  set(generated ${PROJECT_BINARY_DIR}/generated/millrace/model/family_builtin.cc)
  file(CONFIGURE OUTPUT ${generated} @ONLY CONTENT [[
#include "millrace/model/family_builtin.h"

namespace millrace {

std::span<const BuiltinFamily> builtin_family_texts() {
  static constexpr BuiltinFamily kFamilies[] = {
@entries@  };
  return kFamilies;
}

}  // namespace millrace
]])
  target_sources(${target} PRIVATE ${generated})
endfunction()
