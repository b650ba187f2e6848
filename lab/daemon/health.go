package daemon

import (
	"context"
	"fmt"
	"net/http"
)

// Healthy is a probe for Ready: the daemon answers 200 at its health address.
func Healthy(h *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := h.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answered %s", req.URL.Path, resp.Status)
		}
		return nil
	}
}
