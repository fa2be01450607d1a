locals {
  bucket = aws_s3_bucket.artifacts.id
}

data "aws_ssm_parameter" "amazon_linux" {
  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

# Another image, or anything else that it boots with, is another instance: none is changed where it is.
resource "aws_instance" "parent" {
  ami                  = coalesce(var.ami, data.aws_ssm_parameter.amazon_linux.insecure_value)
  instance_type        = var.instance_type
  iam_instance_profile = aws_iam_instance_profile.parent.name
  ebs_optimized        = true

  user_data                   = local.user_data
  user_data_replace_on_change = true

  enclave_options {
    enabled = true
  }

  # One hop is enough for the enclave as well: host-netd asks from a socket of the parent.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  primary_network_interface {
    network_interface_id = aws_network_interface.parent.id
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = var.root_volume_gib
    encrypted   = true
  }

  # What the first boot needs.
  depends_on = [
    aws_eip.parent,
    aws_iam_role_policy.parent,
    aws_iam_role_policy.sessions,
    aws_kms_key.enclave,
    aws_route_table_association.parent,
    aws_s3_object.artifact,
    aws_vpc_security_group_egress_rule.all,
  ]

  #checkov:skip=CKV_AWS_126:detailed monitoring costs extra; host-netd status tells more of the enclave
}
