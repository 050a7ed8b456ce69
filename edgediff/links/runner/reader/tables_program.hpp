// The tables of a program.
#pragma once

#include "manifest.hpp"

namespace edgediff::tables {

Program read_program(const json::Value& value, const fields::Where& where);

}  // namespace edgediff::tables
