/* Spans, arenas, buffers and paths. */
#include "text.h"
