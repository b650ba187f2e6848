// Command relay is a program between a client and a server that does nothing but
// accept, dial and copy: what it costs to be in between at all.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: relay LISTEN TARGET, both such as 127.0.0.1:4430")
		os.Exit(2)
	}
	l, err := net.Listen("tcp", os.Args[1])
	for err == nil {
		var c net.Conn
		if c, err = l.Accept(); err == nil {
			go carry(c.(*net.TCPConn), os.Args[2])
		}
	}
	fmt.Fprintln(os.Stderr, "relay:", err)
	os.Exit(1)
}

// carry copies in the kernel, as the forwarder does: that is what io.Copy does
// between two TCP connections on Linux.
func carry(client *net.TCPConn, target string) {
	defer client.Close()
	c, err := net.Dial("tcp", target)
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(server, client)
		server.CloseWrite()
	}()
	io.Copy(client, server)
	client.CloseWrite()
	<-done
}
