package cost

import (
	"encoding/binary"
	"fmt"
	"os"
)

// wakeups is where the kernel is asked how late a processor may be awake
// (Documentation/power/pm_qos_interface.rst): a request holds while the file is
// open.
const wakeups = "/dev/cpu_dma_latency"

// keepAwake keeps idle processors from sleeping until release is called. What a
// sleeping one takes to wake is the machine's: on one that is itself a guest its
// host must first run it again, which takes as long as everything that a relay
// does, and another time every hour.
func keepAwake() (release func() error, err error) {
	f, err := os.OpenFile(wakeups, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keeping the processors awake: %w", err)
	}
	if _, err := f.Write(binary.NativeEndian.AppendUint32(nil, 0)); err != nil { // microseconds
		f.Close()
		return nil, fmt.Errorf("keeping the processors awake: %w", err)
	}
	return f.Close, nil
}
