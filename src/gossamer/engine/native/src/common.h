#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "abi.h"
#include "pool.h"
