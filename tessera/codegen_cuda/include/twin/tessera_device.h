// A host compiler finds this file where NVRTC is handed the device header, so emitted text needs no #if.
#pragma once
#include "../tessera_twin.h"
