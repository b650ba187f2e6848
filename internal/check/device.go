package check

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"strings"
)

var deviceRules = []Rule{
	{
		ID:     "usbguard",
		What:   "USBGuard's rules are made on the machine at its first boot, and it never starts without",
		Why:    "a list from the build, or an empty one, locks out the keyboard",
		Source: "usbguard-daemon.conf(5), usbguard(1)",
		Fix:    "keep veilor-usbguard.service before usbguard.service, and its condition on a rules.conf that is not empty",
		check:  usbguard,
	},
	{
		ID:     "usbguard-rules",
		What:   "USBGuard reads the rules that we ship, and none of them admits anything",
		Why:    "the daemon does not start with a rule that it cannot read; `allow id *:*` admits everything, and an id alone whatever a disk calls itself",
		Source: "usbguard-rules.conf(5)",
		Fix:    "correct overlay/usr/share/veilor/usbguard.rules; write with-interface into every allow",
		check:  usbguardRules,
	},
	{
		ID:     "wifi-resume",
		What:   "Wi-Fi comes back after every kind of sleep, whatever its driver",
		Why:    "a driver that is written down is another laptop's; suspend alone misses hibernation",
		Source: "systemd.special(7), sleep.target; NetworkManager.conf(5)",
		Fix:    "let veilor-wifi-resume.service find the driver in /sys, and keep wifi.powersave=2",
		check:  wifiResume,
	},
}

func usbguard(_ context.Context, s *Subject) error {
	var p problems
	const dir = "usr/lib/systemd/system/"
	for f, want := range map[string][]string{
		dir + "veilor-usbguard.service":           {"ConditionFileNotEmpty=!/etc/usbguard/rules.conf", "Before=usbguard.service", "Wants=usbguard.service", "WantedBy=multi-user.target"},
		dir + "usbguard.service.d/50-veilor.conf": {"ConditionFileNotEmpty=/etc/usbguard/rules.conf", "After=veilor-usbguard.service"},
		"usr/libexec/veilor/usbguard-rules":       {"usbguard generate-policy", "umask 077", "with-interface", "mv --"},
	} {
		text, err := s.file(f)
		if err != nil {
			p.add(err)
			continue
		}
		p.add(contains("/"+f, text, want...))
	}
	for _, e := range s.below("etc/usbguard/", "") {
		p.addf("/%s is the same on every machine, and they have different keyboards", e.Path)
	}
	for _, l := range s.snippets() {
		if strings.Contains(l, "usbguard generate-policy") {
			p.addf("%s makes the rules of the machine that builds", recipePath)
		}
	}
	return p.err()
}

func usbguardRules(ctx context.Context, s *Subject) error {
	const file = "usr/share/veilor/usbguard.rules"
	text, err := s.file(file)
	if err != nil {
		return err
	}
	var p problems
	for i, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "allow") {
			continue
		}
		device, interfaces, _ := strings.Cut(line, " with-interface ")
		if !strings.Contains(device, " id ") || strings.Contains(device, "*:*") {
			p.addf("/%s:%d admits devices that nobody named: %s", file, i+1, line)
		}
		if interfaces == "" || strings.Contains(interfaces, "*:*:*") {
			p.addf("/%s:%d would admit a keyboard that carries this id: %s", file, i+1, line)
		}
	}
	p.add(laid(map[string][]byte{"rules": text}, func(dir string) error {
		out, err := s.Tools.run(ctx, "usbguard-rule-parser", "-f", dir+"/rules")
		if _, missing := err.(skip); missing {
			return err
		}
		if err != nil {
			return fmt.Errorf("/%s: %s", file, complaint(out, err, dir))
		}
		return nil
	}))
	return p.err()
}

// driverRe finds the names of common Wi-Fi drivers.
var driverRe = regexp.MustCompile(`\b(iwlwifi|iwlmvm|iwlmld|mt79\w+|ath\d+k\w*|brcmfmac|rtw8\w+|rtl8\w+)\b`)

func wifiResume(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	const unit, script = "usr/lib/systemd/system/veilor-wifi-resume.service", "usr/libexec/veilor/wifi-resume"
	if text, err := s.file(unit); err != nil {
		p.add(err)
	} else {
		p.add(contains("/"+unit, text, "Before=sleep.target", "StopWhenUnneeded=yes", "RemainAfterExit=yes", "WantedBy=sleep.target", "ExecStop=/"+script))
	}
	if text, err := s.file(script); err != nil {
		p.add(err)
	} else {
		p.add(contains("/"+script, text, "/device/driver/module"))
		if m := driverRe.FindString(uncommented(string(text))); m != "" {
			p.addf("/%s names the driver %s", script, m)
		}
	}
	saves := true
	for _, e := range s.below("usr/lib/NetworkManager/conf.d/", ".conf") {
		if regexp.MustCompile(`(?m)^wifi\.powersave\s*=\s*2\s*$`).Match(e.Data) {
			saves = false
		}
	}
	if saves {
		p.addf("no file of usr/lib/NetworkManager/conf.d sets wifi.powersave=2")
	}
	for _, e := range s.Tree {
		if dir := path.Dir(e.Path); dir == "etc/systemd/system-sleep" || dir == "usr/lib/systemd/system-sleep" {
			p.addf("/%s: hooks run all at once, unconfined, and hold up the sleep; write a unit", e.Path)
		}
	}
	return p.err()
}
