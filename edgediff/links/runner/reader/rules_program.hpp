// Rules 13 to 23 of docs/format.md, section 7.
#pragma once

#include "manifest.hpp"

namespace edgediff {

/// Throws Refused under the code of the first rule that is broken.
void check_program(const Manifest& manifest, const Program& program);

}  // namespace edgediff
